"""How faithful circuits are, which edges suffice, and what an answer can depend on."""
