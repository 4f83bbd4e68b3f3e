"""The same work on multihost and on ``multiprocessing.Pool``, in turns, and the ratios.

    work.py      what the processes of a pool run
    loads.py     the workloads W1 to W9: what one side is asked to do and measure
    shared.py    the workloads of queues, pipes, locks and processes
    side.py      a process with one pool of its own, told by lines of JSON which workload to run
    cluster.py   a broker and a worker of their own, over TCP on the loopback interface
    measure.py   starts the sides, has them take turns, collects figures
    rows.py      figures of all rounds to rows with a ratio and a target each

Three sides: ``mp`` is multiprocessing, ``L`` multihost's local default, ``T`` multihost with a broker
and a worker as processes of their own. Two processes each.
"""
