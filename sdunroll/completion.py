"""Shell completion: Hydra's script calls the program without a command; this finds the command."""

import os


def with_command(arguments: list[str], commands: list[str]) -> list[str]:
    """The arguments with the command before them; none if there is nothing left to do.

    The line typed so far is in COMP_LINE: the command is taken out of it, since each command is an
    application of its own. While the command itself is being typed, the commands are printed.
    """
    line = os.environ.get("COMP_LINE", "")
    if not line:  # install or uninstall: the same script for every command
        return [commands[0], *arguments]
    program, *words = line.split()
    if not words or (len(words) == 1 and line.endswith(words[0])):
        typed = words[0] if words else ""
        print(" ".join(name for name in commands if name.startswith(typed)))
        return []
    command = words[0]
    if command not in commands:
        return []
    _, _, rest = line.partition(program)[2].partition(command)
    os.environ["COMP_LINE"] = f"{program} {rest.lstrip()}"
    if "COMP_POINT" in os.environ:
        point = int(os.environ["COMP_POINT"]) - len(line) + len(os.environ["COMP_LINE"])
        os.environ["COMP_POINT"] = str(max(point, 0))
    return [command, *arguments]
