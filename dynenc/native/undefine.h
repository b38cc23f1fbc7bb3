/* The end of an instruction set of networks.h. */
#undef PATH
#undef TARGET
#undef LANES
#undef ROWS
#undef VEC
#undef PAIRS
#undef WEIGHTS
#undef splat
#undef load_pairs
#undef load_weights
#undef multiply_add
#undef gather
#undef store
#undef store_units
#undef multiply_add_bytes
#undef largest_lane
#undef load
