"""Label files: what the search found, one JSON line an example, and a header file beside them.

`labels.jsonl` loads with `datasets.load_dataset("json", data_files=…)`. `labels.header.json` says how it was
made; a file is only continued by a run with the same header.
"""
