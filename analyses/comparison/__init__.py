"""Two models, the same questions: asked, kept, tabled, drawn and reported."""
