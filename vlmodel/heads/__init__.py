"""The heads of tasks that write texts: a file of settings each; the modules are in ``vlmodel.decoder``."""
