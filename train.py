"""Train, validate, test or predict: `python train.py fit --config configs/demo.yaml`."""

from mois.machine.interrupts import ctrl_c_ends
from mois.machine.system_calls import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()
    with ctrl_c_ends(to_the_end=True):
        from mois.cli.train import main

        main()
