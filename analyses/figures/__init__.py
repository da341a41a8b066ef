"""How results are drawn: for paper, for notebooks, as pages. Takes results, never models; `explore` alone asks them."""
