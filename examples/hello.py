"""Ten lines: a map over every process there is, here or on a cluster."""

import platform

import multihost as mp


def square(x: int) -> tuple[int, str]:
    return x * x, platform.node()


if __name__ == "__main__":
    with mp.Pool() as pool:
        for value, host in pool.map(square, range(10)):
            print(f"{value:3} from {host}")
