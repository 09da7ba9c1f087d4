"""Server-side rules that several methods share."""
