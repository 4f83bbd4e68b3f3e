"""Scripts without arguments that say and exit the same whether python or multihost runs them."""

from __future__ import annotations

#: Scripts without arguments, each run by python and by multihost: both have to say and exit the same.
ALIKE = {
    "map": """
        from multiprocessing import Pool
        def f(x): return x * x
        if __name__ == "__main__":
            with Pool(3) as pool:
                print(pool.map(f, range(10)), pool._processes)
    """,
    "no guard": """
        import multiprocessing
        def f(x): return x + 1
        pool = multiprocessing.Pool(2)
        print(pool.map(f, [1, 2]), list(pool.imap(f, "" or [3])))
        pool.close()
        pool.join()
    """,
    "context": """
        import multiprocessing as mp
        def f(x): return -x
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                with mp.get_context(method).Pool(2) as pool:
                    print(method, pool.map(f, [1]))
            with mp.get_context().Pool(processes=1, maxtasksperchild=1) as pool:
                print(pool.map(f, [1, 2, 3], chunksize=1))
    """,
    "start method": """
        import multiprocessing
        def f(x): return -x
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            multiprocessing.freeze_support()
            with multiprocessing.Pool(2) as pool:
                print(multiprocessing.get_start_method(), pool.starmap(pow, [(2, 3)]), pool.apply(f, [1]))
    """,
    "pool module": """
        from multiprocessing.pool import Pool, ThreadPool
        def f(x): return -x
        if __name__ == "__main__":
            with Pool(2) as pool, ThreadPool(2) as threads:
                print(pool.map(f, [1]), threads.map(lambda x: x + 1, [1]), type(pool).__name__)
    """,
    "initializer": """
        import multiprocessing
        def begin(a, b): global state; state = a + b
        def f(x): return state + x
        if __name__ == "__main__":
            with multiprocessing.Pool(2, initializer=begin, initargs=(1, 2)) as pool:
                print(pool.map(f, [1]))
    """,
    "executor": """
        from concurrent.futures import ProcessPoolExecutor, as_completed
        def f(x):
            if x == 3: raise ValueError(x)
            return x * 10
        if __name__ == "__main__":
            with ProcessPoolExecutor(max_workers=2) as executor:
                print(list(executor.map(f, range(3), chunksize=2)), executor.submit(f, x=5).result())
                print(repr(executor.submit(f, 3).exception()))
                print(sorted(each.result() for each in as_completed([executor.submit(f, i) for i in range(3)])))
    """,
    "executor and context": """
        import concurrent.futures, multiprocessing
        def f(x): return x
        if __name__ == "__main__":
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as e:
                print(e.submit(f, 1).result(timeout=30))
    """,
    "callbacks": """
        import multiprocessing
        def f(x): return 1 // x
        if __name__ == "__main__":
            pool = multiprocessing.Pool(2)
            good = pool.apply_async(f, (1,), callback=lambda value: print("good", value))
            good.wait()
            bad = pool.apply_async(f, (0,), error_callback=lambda error: print("bad", error))
            bad.wait()
            pool.close()
            pool.join()
            print(good.successful(), bad.successful())
    """,
    "errors": """
        import multiprocessing
        def f(x): raise KeyError(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool:
                try:
                    pool.map(f, [1])
                except KeyError as error:
                    print(repr(error), type(error.__cause__).__name__, 'raise KeyError(x)' in str(error.__cause__))
                try:
                    pool.apply_async(f, (1,)).get(timeout=30)
                except KeyError as error:
                    print(repr(error))
    """,
    "its own names": """
        import sys, __main__
        print(__name__, sys.argv[1:], __file__ == sys.argv[0], __doc__, __spec__, __package__, __builtins__)
        print(sorted(name for name in vars(__main__) if not name.startswith("__")), sys.path[0])
    """,
    "docstring": '''
        """What it is."""
        print(__doc__, __annotations__ if "__annotations__" in globals() else {})
    ''',
    "exit 3": "import sys; sys.exit(3)",
    "exit with text": "import sys; sys.exit('no')",
    "exit none": "import sys; sys.exit()",
    "exception": """
        def f():
            raise ValueError("some text")
        f()
    """,
    "syntax error": "x = (1\n",
    "syntax error in an import": "import broken_module",
    "os._exit": "import os; print('a', flush=True); os._exit(7)",
    "an error in a pool": """
        import multiprocessing
        def f(x): raise ValueError(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
    """,
    "logging": """
        import logging, multiprocessing
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
        special = logging.getLogger("special")
        special.setLevel(logging.DEBUG)
        def f(x):
            logging.info("information")
            logging.debug("not shown")
            special.debug("special")
            print("printed", flush=True)
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
    """,
    "logging to a file": """
        import logging, multiprocessing
        logging.basicConfig(filename="log.txt", filemode="w", level=logging.INFO)
        def f(x): logging.info("from a child")
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
            print(open("log.txt").read())
    """,
    "manager": """
        import multiprocessing
        def f(shared, x): shared.append(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool, multiprocessing.Manager() as manager:
                shared = manager.list()
                pool.starmap(f, [(shared, x) for x in range(4)])
                print(sorted(shared))
    """,
    "a queue with a sentinel": """
        from multiprocessing import Process, Queue, current_process
        def create(data, q):
            for item in data: q.put(item)
            q.put(None)
        def consume(q, out):
            while (item := q.get()) is not None: out.put((current_process().name, item * 2))
            out.put(None)
        if __name__ == "__main__":
            q, out = Queue(), Queue(5)
            both = [Process(target=create, args=([1, 2, 3], q)), Process(target=consume, args=(q, out), name="taker")]
            for process in both: process.start()
            print(list(iter(out.get, None)))
            for process in both: process.join()
            print([(process.name, process.exitcode, process.is_alive()) for process in both], q.empty())
    """,
    "processes of a class": """
        import multiprocessing as mp, sys
        class Leaver(mp.Process):
            def __init__(self, code): super().__init__(); self.code = code
            def run(self): sys.exit(self.code)
        if __name__ == "__main__":
            mp.set_start_method("spawn")
            context = mp.get_context()
            class Other(context.Process):
                pass
            print(mp.get_start_method(), mp.get_all_start_methods(), context.Process().name, Other().name)
            leaver = Leaver(3)
            print(leaver.name, leaver.daemon, leaver.pid, leaver.exitcode, isinstance(leaver, mp.process.BaseProcess))
            leaver.start()
            print(mp.active_children() == [leaver], mp.parent_process(), mp.current_process().name)
            leaver.join()
            print(leaver.exitcode, mp.active_children())
            try:
                mp.set_start_method("fork")
            except RuntimeError as error:
                print(error)
    """,
    "pipes": """
        import multiprocessing
        from multiprocessing.connection import Connection, wait
        def f(end: Connection, x):
            end.send([x, end.recv()])
            end.close()
        if __name__ == "__main__":
            processes, ends, said = [], [], []
            for x in range(2):
                here, there = multiprocessing.Pipe()
                process = multiprocessing.Process(target=f, args=(there, x))
                process.start()
                there.close()
                here.send("hello")
                processes.append(process)
                ends.append(here)
            while ends:
                for end in wait(ends):
                    try:
                        said.append((end.recv(), isinstance(end, Connection)))
                    except EOFError:
                        ends.remove(end)
            for process in processes:
                process.join()
            print(sorted(said), len(wait([process.sentinel for process in processes])))
    """,
    "locks, values and arrays": """
        import multiprocessing as mp
        from multiprocessing import Array, Barrier, Condition, Event, Lock, RLock, Semaphore, Value
        from multiprocessing.sharedctypes import Synchronized
        def f(lock, value, array, event, barrier, i):
            barrier.wait()
            for _ in range(3):
                with lock, value.get_lock():
                    value.value += 1
            array[i] = i * 1.5
            event.set()
        if __name__ == "__main__":
            lock, value, array, event, barrier = Lock(), Value("i", 1), Array("d", 3), Event(), Barrier(3)
            processes = [mp.Process(target=f, args=(lock, value, array, event, barrier, i)) for i in range(3)]
            for process in processes: process.start()
            for process in processes: process.join()
            print(value.value, array[:], event.is_set(), isinstance(value, Synchronized), value, lock)
            print(lock.acquire(), lock.acquire(False), lock.acquire(timeout=0.01), Semaphore(2), RLock(), Condition())
    """,
    "managers": """
        import multiprocessing
        from multiprocessing.managers import BaseManager, SyncManager
        class Counter:
            def __init__(self): self.number = 0
            def count(self): self.number += 1; return self.number
        class Mine(BaseManager): pass
        Mine.register("Counter", Counter)
        def f(counter, shared, x):
            shared[x] = counter.count()
        if __name__ == "__main__":
            with Mine() as mine, multiprocessing.Manager() as manager:
                counter, shared = mine.Counter(), manager.dict()
                with multiprocessing.Pool(2) as pool:
                    pool.starmap(f, [(counter, shared, x) for x in range(3)])
                process = multiprocessing.Process(target=f, args=(counter, shared, 3))
                process.start()
                process.join()
                print(sorted(shared), sorted(shared.values()), isinstance(manager, SyncManager))
    """,
    "shared memory": """
        import multiprocessing
        from multiprocessing.shared_memory import SharedMemory
        def f(name):
            memory = SharedMemory(name=name)
            memory.buf[0] += 1
            memory.close()
        def g(queue):
            memory = SharedMemory(create=True, size=1)
            memory.buf[0] = 7
            queue.put(memory.name)
            memory.close()
        if __name__ == "__main__":
            memory = SharedMemory(create=True, size=1)
            for _ in range(2):
                process = multiprocessing.Process(target=f, args=(memory.name,))
                process.start()
                process.join()
            print(memory.buf[0])
            memory.close()
            memory.unlink()
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=g, args=(queue,))
            process.start()
            memory = SharedMemory(name=queue.get())
            process.join()
            print(memory.buf[0], SharedMemory(name=memory.name).size)
            memory.close()
            memory.unlink()
    """,
    "names of a pool's processes": """
        import multiprocessing, time
        from concurrent.futures import ProcessPoolExecutor
        def f(x):
            process = multiprocessing.current_process()
            return process.name, process._identity[0] if x else None
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                print(pool.map(f, [0, 1]))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(f, [0])[0][0][:16])
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(f, 0).result()[0][:12])
    """,
}
