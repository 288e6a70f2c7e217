"""``gpuprover bench``; in the wheel as ``gpuprover.bench``. Modules here import each other relatively."""
