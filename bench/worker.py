"""A running Python program that starts containers through the API: one for each line it reads, answering with the seconds it took."""

import sys
import time

from utsuwa import Engine


def main():
    engine, image = Engine(), sys.argv[1]
    for _ in sys.stdin:
        began = time.perf_counter()
        result = engine.run(image, ["true"], network="none", memory=64 << 20, pids_limit=100)
        seconds = time.perf_counter() - began
        if result.exit_code:
            raise SystemExit(f"the container ended with {result.exit_code}")
        print(seconds, flush=True)


main()
