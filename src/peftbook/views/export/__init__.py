"""What leaves the book: GGUF files for llama.cpp, the EPUB, the PDF."""

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # peft's others move what they start at out of the base
