"""Task programs that the benchmarks run, and the swarm of simulated workers."""
