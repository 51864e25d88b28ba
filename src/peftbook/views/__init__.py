"""What readers see: pages, figures and slides."""
