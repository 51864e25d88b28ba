"""Build the tickets: 300 messages to an invented shop, each put together from the sentences below by a fixed seed.

python tests/tools/tickets_build.py > src/peftbook/data/tickets.csv
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterator

__all__ = ["tickets"]

CUSTOMERS, EACH, SEED = 100, 3, 7
PRODUCTS = ("lamp", "kettle", "tent", "radio", "bicycle", "camera", "heater", "printer")
TROUBLES = {
    "billing": (
        "I was charged twice for the {product}.",
        "The invoice for the {product} has a wrong total.",
        "My card was billed for a {product} that I never ordered.",
        "The discount on the {product} is not on my bill.",
    ),
    "delivery": (
        "The {product} has not arrived yet.",
        "The parcel with the {product} went to a wrong address.",
        "Tracking says that the {product} was delivered, but it was not.",
        "When will my {product} be shipped?",
    ),
    "returns": (
        "I want to send the {product} back.",
        "How do I return the {product}?",
        "The {product} is too small and I would like a refund.",
        "Please exchange the {product} for another one.",
    ),
    "repair": (
        "The {product} stopped working after a week.",
        "The {product} makes a strange noise.",
        "A part of the {product} is broken.",
        "The {product} does not turn on.",
    ),
    "account": (
        "I cannot log in to see my order of the {product}.",
        "My password does not work since I bought the {product}.",
        "Please delete my account, I only wanted the {product}.",
        "Change the address in my account before you send the {product}.",
    ),
}
TONES = (
    "I need this today.", "This is urgent.", "We cannot work without it.", "Answer at once, please.", "",
    "Please let me know.", "Thank you for your help.", "There is no hurry.", "It can wait.", "",
)  # fmt: skip
GREETINGS = ("Hello,", "Good morning,", "Dear team,", "Hi,", "")


def tickets() -> Iterator[dict[str, str]]:
    """The rows: a customer, the message, and the team that it is for."""
    draw = random.Random(SEED)
    for number in range(CUSTOMERS * EACH):
        team, tone, product = draw.choice([*TROUBLES]), draw.choice(TONES), draw.choice(PRODUCTS)
        trouble = draw.choice(TROUBLES[team]).format(product=product)
        parts = [draw.choice(GREETINGS), *((tone, trouble) if draw.random() < 0.3 else (trouble, tone))]
        message = " ".join(part for part in parts if part)
        yield {"customer": f"c{number % CUSTOMERS:03}", "message": message, "team": team}


def write() -> None:
    """The file, on standard output."""
    writer = csv.DictWriter(sys.stdout, ("customer", "message", "team"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(tickets())


if __name__ == "__main__":
    write()
