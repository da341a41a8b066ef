"""How results are drawn: for paper, for notebooks, as pages. Takes results, never models; but for `explore`, which asks them."""
