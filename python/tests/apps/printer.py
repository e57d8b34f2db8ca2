"""An app that prints long lines while it is imported. $LINES says how many."""

import os
import sys

from toolkit import Routes

app = Routes()

for number in range(int(os.environ["LINES"])):
    letter = "abcdefghijklmnopqrstuvwxyz"[(os.getpid() + number) % 26]
    print(f"<{os.getpid()}:{number}:{letter * (3_000 + number % 5_000)}>", file=(sys.stdout, sys.stderr)[number % 2])
# One line that the streams have to hold for long, and one that is printed piece by piece.
print("<", "z" * 100_000, ">", sep="")
for piece in ("<", "pieces", ">\n"):
    print(piece, end="")
