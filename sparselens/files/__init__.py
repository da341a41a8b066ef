"""Files that are whole or absent, results as files, strict JSON, and one run per output folder."""
