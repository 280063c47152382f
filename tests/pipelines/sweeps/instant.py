"""Leaves behind what `dreamcade fit` does, without learning anything: ten steps whose metric grows by --rate.

With a rate below --waits, it waits in the middle to be told to stop.
"""

import signal
import sys
import time
from pathlib import Path

from pipelines.console import STOPPED

STEPS = 10
options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:] if "=" in option)
folder = Path(sys.argv[sys.argv.index("--trainer.default_root_dir") + 1])
resume = "--ckpt_path" in sys.argv
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
with (folder.parent / "starts.txt").open("a") as file:
    file.write(f"{folder.name} {'resumed' if resume else 'new'}\n")
if float(options["rate"]) < 0:
    sys.exit("Traceback of some lines\nValueError: rate is negative")
last = folder / "checkpoints" / "last.ckpt"
last.parent.mkdir(exist_ok=resume)
metrics = folder / "metrics.csv"
first = int(last.read_text()) if resume else 0
for step in range(first, STEPS):
    if not metrics.exists():
        metrics.write_text("evaluate/return,loss,step\n")
    with metrics.open("a") as file:
        file.write(f"{(step + 1) * float(options['rate'])},,{step}\n,0.5,{step}\n")
    last.write_text(str(step + 1))
    while step == STEPS // 2 and float(options["rate"]) < float(options.get("waits", 0)) and not told:
        time.sleep(0.01)
    if told:
        sys.exit(print(f"dreamcade: {STOPPED}", file=sys.stderr))
    time.sleep(float(options.get("seconds", 0.01)))
