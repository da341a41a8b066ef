"""Figures for papers, notebooks and web pages. They take results, never models; only `explore` runs models itself."""
