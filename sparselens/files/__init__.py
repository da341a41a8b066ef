"""Files that are whole or absent, results as files, and one run per output folder."""
