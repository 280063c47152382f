class UserError(Exception):
    """A mistake of the user: one line that says what is wrong, what was expected and the nearest right spelling.

    The command line prints it and exits with code 2; anything else that escapes is a bug and keeps its traceback.
    """
