"""Evidence: what numbers can carry, by rules that all parts of the book share."""
