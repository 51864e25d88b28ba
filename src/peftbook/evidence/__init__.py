"""What numbers rest on and how they are shown: one description of a chart, drawn for pages, slides and screens."""
