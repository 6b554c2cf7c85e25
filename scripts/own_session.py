"""Imported by the fork server: its processes hear no signals of the terminal or the process group, which
the script passes on to them.
"""

import os

os.setsid()
