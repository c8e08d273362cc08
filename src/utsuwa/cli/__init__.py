"""The command line. A door: it translates and decides nothing."""
