"""A bank: accounts whose histories are kept, and transfers between them that survive ``kill -9``.

python -m examples.bank                        # 300 transfers, two workers, killed three times
python -m examples.bank --url kafka://localhost:9092
python -m examples.bank work                   # a worker, until Ctrl-C
python -m examples.bank open ada 500           # ... and from anywhere else: an account with 5.00,
python -m examples.bank open bob
python -m examples.bank send ada bob 200       # a transfer of 2.00,
python -m examples.bank pay ada bob 100        # a payment, by the process manager,
python -m examples.bank show ada               # and the state of an account

``account.py`` is the bank's business, pure. ``transfers.py`` is the saga that moves money between
two accounts; ``payments.py`` is a process manager that does so too, and holds large payments until
they are approved. ``demo.py`` kills workers, and ``audit.py`` checks the sums independently.
"""
