"""The exception by which Ctrl-C or SIGTERM ends a command. No ray, no torch."""


class Interrupted(BaseException):
    """A signal that ends the command.

    Not a KeyboardInterrupt, which typer would end without a message, and no Exception, which a library might handle.
    """

    def __init__(self, number: int, message: str = "interrupted; run the same command again to go on") -> None:
        super().__init__(number, message)
        self.number = number
        self.message = message

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """By the convention of shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number
