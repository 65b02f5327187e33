"""The work of a row, the same in every engine: the length of its text.

Where CALLS names a file, each call is slow and appends a byte to it: what a killed process had computed is counted so.
"""
import os
import time

calls = 0
log = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "CALLS" in os.environ else None


def length(text):
    global calls
    calls += 1
    if log is not None:
        os.write(log, b".")
        time.sleep(1e-4)
    return len(text)


def report():
    with open("calls.txt", "w") as file:
        file.write(str(calls))
