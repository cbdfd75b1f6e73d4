"""Pure maths of OA-EM on additive quantisation: no files, no configuration, no logging, no workflow."""
