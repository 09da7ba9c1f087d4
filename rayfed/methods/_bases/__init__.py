"""What several methods share; a method file names what it takes from here."""
