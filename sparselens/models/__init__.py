"""Finding, opening, checking, saving and describing models on disk; and the models that ship with the package."""
