"""Run layers over several processes or GPUs of this host."""
