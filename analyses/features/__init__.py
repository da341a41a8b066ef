"""Features: transcoders in place of MLPs, and how heads carry the influence of one feature on another."""
