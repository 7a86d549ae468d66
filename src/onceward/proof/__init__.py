"""The proof: a workload under a schedule of faults, and the checker that counts what became of it."""
