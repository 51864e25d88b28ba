"""Build the task contact: 420 short messages that leave a phone number, an e-mail address, or neither, by a fixed seed.

python tests/tools/contact_build.py > src/peftbook/data/contact.csv

A message is a key sentence and up to two others. Of every five sentences of a list, three are for training, one for
validation and one for the test, so that no wording is in two splits.
"""

from __future__ import annotations

import csv
import random
import string
import sys
from collections.abc import Iterator

__all__ = ["COLUMNS", "KEYS", "LABELS", "OTHERS", "ROWS", "contacts", "part"]

COLUMNS = ("split", "wording", "message", "contact")
LABELS = ("phone", "email", "none")
ROWS = {"train": 300, "validation": 60, "test": 60}
PLACES = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}  # of every five sentences
SEED, LONGEST = 7, 84  # characters of a message

EITHER = (
    "You can reach me at {s}.", "If you need me: {s}.", "At work I have {s}.", "Just try {s}.", "My contact is {s}.",
    "Let my wife know at {s}.", "{s} is the best way to get me.", "For questions use {s}.", "I am at {s} all day.",
    "Please use {s} from now on.", "My new one is {s}.", "It has changed to {s}.", "{s}, any time.", "Contact: {s}",
    "You will find me under {s}.", "My old one was wrong, it is {s}.", "The right one is {s}.", "Or try my son: {s}.",
    "Ask at {s}, please.", "Here is how to get me: {s}", "{s}", "Anna, {s}", "Tell the driver to use {s}.",
    "Our office has {s}.", "I gave you {s} before.",
)  # fmt: skip
PHONE = (
    "Call me on {s}.", "My number is {s}.", "Please ring {s} after five.", "Phone {s} and ask for Tom.",
    "My phone is {s}.", "Tel. {s}", "Ring my son on {s}.", "Call {s}.", "{s} is my number.", "Text me at {s}.",
    "The driver can call {s}.", "Phone: {s}", "Please call back at {s}.", "Give me a call: {s}.", "Mobile {s}.",
    "Could you phone {s} today?", "Send a text to {s}.", "You can ring us at {s}.", "Dial {s} and wait.",
    "I pick up at {s}.",
)  # fmt: skip
EMAIL = (
    "Write to {s}.", "My mail is {s}.", "Please send it to {s}.", "Answer to {s}.", "Mail me at {s}.",
    "Send the bill to {s}.", "{s} is my address.", "A copy to {s}, please.", "Any news to {s}.", "E-mail: {s}",
    "My e-mail address is {s}.", "Please reply to {s}.", "Forward it to {s}.", "I wrote from {s}.",
    "Could you mail the list to {s}?", "Photos go to {s}.", "Send me the form at {s}.", "Put {s} on your list.",
    "My account is under {s}.", "The link should go to {s}.",
)  # fmt: skip
NONE = (
    "I paid {m} euros for {n} {t}s.", "I ordered the {t} {n} weeks ago.", "My order is {o}.", "Where is the {t}?",
    "Why was I charged {m} euros?", "Nobody has called me back.", "Please call me soon.", "You never write back.",
    "I wrote you a mail on the {k}th.", "The {t} costs {m} euros in town.", "It broke after {n} days.",
    "Please send the {t}.", "My phone is broken.", "Your mail did not help.", "I tried to ring you {n} times.",
    "The {t} was too small.", "Order no. {o} is late.", "I bought it on {d}.", "The bill of {d} is wrong.",
    "Your web site does not load.", "I cannot log in on your page.", "The password for the site is gone.",
    "We need {n} {t}s by {k} o'clock.", "The number on the bill is wrong.", "I live at {n} Park Road.",
    "It is {m} cm wide and {k} cm high.", "Can I pay online?", "The link in your mail is dead.",
    "I saw it on www.{h}shop.com.", "Is the shop open on {d}?", "Order #{o} came without a {t}.",
    "I have no phone at the moment.", "Do you have my address?", "Your number is always busy.",
    "The train leaves at {n}.{m2}.", "There were {m} people at the party.", "It was {m}.{m2} euros last year.",
    "My code {o} does not work.", "We moved here in {y}.", "The {t} is from {y}.", "Call off the order, please.",
    "Can you come on {d}?", "I want {n} {t}s and not {k}.", "Please cancel {o}.", "Only {n} of {k} boxes came.",
    "The e-mail that you sent was empty.", "Send me a new {t}, please.", "How do I change my mail address?",
    "Page {m} is missing in the book.", "You took ${m}.{m2} twice.", "The meeting is at {n}:{m2} in room {m}.",
    "Is {m} euros too much for a {t}?", "It weighs {n}.{k} kg.", "I shall write again in {n} days.",
    "The {t} has the number {o}.", "My house number is {m}.", "The app asks for a phone number.",
    "We are {n} people.", "The score was {n} to {k}.", "Ticket {o} is still open.", "I have lost your number.",
    "Reply when you can.", "He did not leave a number.", "Take the {m} bus at {k}.{m2}.", "Flat {n}, floor {k}.",
    "The {t} is ${m} at {h}.com.", "It fell {n} times.", "The offer ended on {d}.", "Our dog is {k} years old.",
    "Why does the form want my e-mail?",
)  # fmt: skip
KEYS = {"phone": EITHER + PHONE, "email": EITHER + EMAIL, "none": NONE}
OTHERS = (
    "It has not arrived yet.", "I am still waiting.", "The {t} is broken.", "Nobody answers.", "Thanks.",
    "Thank you very much.", "Please let me know.", "Can you help me?", "This is urgent.", "I want my money back.",
    "We need it soon.", "What should I do now?", "The {t} does not work.", "I am not happy about this.",
    "Your shop is great.", "My wife ordered the {t}.", "It was a present for my son.", "Hello.", "Hi there.",
    "Good morning.", "Dear team.", "Sorry to bother you.", "I have looked everywhere.", "The box was open.",
    "A part of the {t} is missing.", "I forgot to say it.", "We are on holiday.", "Please answer soon.",
    "I would be glad.", "That is a shame.", "I am a bit confused.", "The colour is wrong.", "See you soon.",
    "I cannot find the bill.", "Is that possible?", "Would that be all right?", "Please be quick.",
    "I am writing again.", "Hello everybody.", "It is for my office.", "The {t} makes a noise.", "We like the {t}.",
    "Can you check?", "I do not understand it.", "I am home in the evening.", "The room is still free.",
    "I found your keys.", "I would like to join the club.", "The lesson was nice.", "There is no hurry.",
    "I paid {m} euros.", "It is order {o}.", "It came on {d}.", "I have {n} {t}s.", "My street is Park Road {k}.",
)  # fmt: skip
THINGS = (
    "lamp", "kettle", "tent", "radio", "bike", "camera", "heater", "printer", "chair", "table", "sofa", "laptop",
    "oven", "fan", "clock", "watch", "guitar", "book", "desk", "mirror", "pan", "carpet", "coat", "key",
)  # fmt: skip
NAMES = (
    "anna", "tom", "maria", "peter", "rosa", "mike", "sam", "lena", "joe", "eva", "karl", "julia", "ben", "nina",
    "paul", "sara", "max", "lucy", "david", "emma",
)  # fmt: skip
SURNAMES = ("stone", "lee", "park", "berg", "moore", "hill", "fox", "klein", "wood", "ray", "king", "novak")
ROLES = ("info", "office", "sales", "help", "team", "post", "contact", "home")
HOSTS = ("mail", "web", "post", "gmx", "home", "work", "gmail", "inbox", "shop", "school", "lake", "garden", "north")
ENDS = ("com", "de", "org", "net", "uk", "co.uk", "fr", "info", "edu", "io")
MONTHS = ("May", "June", "July", "March", "April")
PHONES = (
    "0### ######", "0### ### ####", "### ####", "0#### ######", "###-####", "###-###-####", "(###) ###-####",
    "+## ### ######", "+## ### ### ####", "0###/######", "###.###.####", "00## ### ######", "0##########",
    "0# ## ## ## ##", "+1-###-###-####", "0###-######", "+## (0)### ######", "### ## ##", "##########",
    "1-###-###-####",
)  # fmt: skip
DATES = ("#.#.20##", "1#.0#.20##", "20##-0#-1#", "{month} #", "#th {month}", "1#/0#/2#", "{month} 1#, 20##")


def digits(pattern: str, draw: random.Random, signs: str = string.digits) -> str:
    """The pattern with a digit for each #."""
    return "".join(draw.choice(signs) if sign == "#" else sign for sign in pattern)


def address(draw: random.Random) -> str:
    """An e-mail address."""
    name, surname, number = draw.choice(NAMES), draw.choice(SURNAMES), draw.randint(1, 99)
    local = draw.choice(
        (name, f"{name}.{surname}", f"{name[0]}.{surname}", f"{name}_{surname}", f"{name}{number}", f"{name}-{surname}",
         f"{surname}{number}", draw.choice(ROLES), f"{name.capitalize()}.{surname.capitalize()}")
    )  # fmt: skip
    return f"{local}@{draw.choice(HOSTS)}.{draw.choice(ENDS)}"


def part(sentences: tuple[str, ...], split: str) -> list[str]:
    """The sentences of a list that a split has."""
    return [sentence for place, sentence in enumerate(sentences) if place % 5 in PLACES[split]]


def filled(sentence: str, draw: random.Random, label: str = "none") -> str:
    """A sentence with things and numbers in its gaps, and a number or an address in that of its label."""
    n, k = draw.sample(range(2, 10), 2)
    return sentence.format(
        s=address(draw) if label == "email" else digits(draw.choice(PHONES), draw),
        t=draw.choice(THINGS), n=n, k=k, m=draw.randint(11, 250), m2=draw.randint(10, 59), y=draw.randint(1980, 2025),
        o=digits(draw.choice(("####", "#####", "######", "A#####", "##-###")), draw), h=draw.choice(HOSTS),
        d=digits(draw.choice(DATES), draw, signs="123456789").format(month=draw.choice(MONTHS)),
    )  # fmt: skip


def message(label: str, split: str, draw: random.Random) -> tuple[str, str]:
    """A message of a label in a split's wordings, and its key sentence."""
    key = draw.choice(part(KEYS[label], split))
    before = [filled(draw.choice(part(OTHERS, split)), draw)] if draw.random() < 0.35 else []
    after = [filled(draw.choice(part(OTHERS, split)), draw)] if draw.random() < 0.55 else []
    return " ".join((*before, filled(key, draw, label), *after)), key


def contacts() -> Iterator[dict[str, str]]:
    """The rows, a third of each label in every split; no message comes twice."""
    draw, seen = random.Random(SEED), set()
    for split, count in ROWS.items():
        for number in range(count):
            label, text = LABELS[number % len(LABELS)], ""
            while not text or text in seen or len(text) > LONGEST:
                text, key = message(label, split, draw)
            seen.add(text)
            yield dict(zip(COLUMNS, (split, key, text, label), strict=True))


def write() -> None:
    """The file, on standard output."""
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(contacts())


if __name__ == "__main__":
    write()
