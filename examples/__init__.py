"""Programs to copy from, and the demo that runs them on real data.

`npy_to_npz_program` and `data_storage_to_mla_program` are complete programs; each file stands
alone, and imports of ours only what `jobflow_worker` publishes. `demo_data` makes the input of
`make demo`, `verify_outputs` compares every output with its input, `demo` runs it all.
"""
