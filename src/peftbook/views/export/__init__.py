"""What leaves the book: GGUF files for llama.cpp, the EPUB, the PDF."""
