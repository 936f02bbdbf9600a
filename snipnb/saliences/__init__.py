"""How much a parameter matters."""
