"""Recipe: from a base model, a card and a file of rows to a method, its settings, and scripts that run."""
