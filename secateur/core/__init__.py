"""The bottom floor: types that every other package shares. Imports nothing of ours."""
