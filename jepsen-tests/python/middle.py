"""The middle of a program: when a fault is brought in.

The program prints `half` and goes on with its work; the harness brings the fault in and writes a line when it
is over. The program keeps some of its work for after that line, and counts it, so that a fault that came too
late is seen.
"""

import os
import threading


class Middle:
    def __init__(self):
        self._over = threading.Event()

    def reached(self):
        print("half", flush=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        # Not through `sys.stdin`, whose lock a thread may not hold when the interpreter ends.
        os.read(0, 64)
        self._over.set()

    def is_over(self):
        return self._over.is_set()

    def wait(self, timeout):
        return self._over.wait(timeout)
