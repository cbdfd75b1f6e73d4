"""PV-tuning (Malinovskii et al., 2024): end-to-end tuning of codes, codebooks and everything that is not quantised."""
