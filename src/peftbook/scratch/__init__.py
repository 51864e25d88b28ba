"""Each method of the book built from torch alone, one page a file, and checked against peft and bitsandbytes."""
