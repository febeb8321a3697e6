"""The index of a folder of tars: which samples the tars hold, where, and what is wrong with the rest."""
