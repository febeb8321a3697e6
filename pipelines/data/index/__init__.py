"""Which samples the tars hold, where, and what is wrong with the rest."""
