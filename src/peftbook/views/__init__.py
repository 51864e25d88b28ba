"""What people see: figures, slides, the site, exported files; and the one writer of HTML."""
