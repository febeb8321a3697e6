"""Settings of the heads that write texts, one file for each kind; their modules are in ``vlmodel.decoder``."""
