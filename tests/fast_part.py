"""How much of the long tests `make test` runs, so that it takes minutes: the other cases are slow ones.

The number is that of the first cases of a test's parameters; 0 leaves the test to `make test-slow`. What a
test asks of methods, places or inputs of one kind is asked of a few of them here.
"""

FIRST_CASES = {
    "arithmetic/test_canonical_convolutions.py": {"test_gradient_of_every_kind_of_convolution": 14},
    "arithmetic/test_random_bits.py": {"test_numbers_are_those_of_jax": 1},
    "arithmetic/test_rowwise.py": {"test_examples_that_never_meet_are_seen_to_be_apart": 3},
    "batches/test_accumulation.py": {
        "test_a_first_gradient_taken_anew_has_as_many_slices": 0,
        "test_accumulated_is_the_big_batch": 1,
        "test_accumulation_and_slices_compose": 1,
        "test_each_pass_slice_and_draw_has_its_own_key": 0,
        "test_one_slice_or_draw_has_the_keys_of_the_method": 0,
        "test_scores_by_gradient_norm_are_accumulated_too": 0,
        "test_weights_of_both_signs_that_cancel_in_a_slice_count": 1,
    },
    "batches/test_losses_that_couple.py": {
        "test_a_trajectory_with_padding_is_that_without": 1,
        "test_aux_in_which_examples_meet_sees_the_mask_as_it_is": 0,
        "test_the_mask_of_the_loss_keeps_its_meaning_in_padding": 1,
    },
    "batches/test_mixed_precision.py": {
        "test_gradients_that_underflow_in_float16_are_rescued_in_float32": 3,
        "test_no_result_depends_on_the_loss_scale": 2,
    },
    "batches/test_signs_in_padding.py": {"test_a_mask_of_infinities_or_nan_keeps_its_meaning": 10},
    "batches/test_token_losses.py": {
        "test_weights_by_tokens_give_the_mean_over_all_tokens_whatever_padding_holds": 1
    },
    "clients/test_clients.py": {
        "test_eager_steps_over_graphs_compile_nothing_after_the_first_ones": 0,
        "test_every_method_that_the_door_allows_trains": 1,
        "test_per_device_takes_parameters_in_their_boxes": 0,
        "test_program_with_sam_is_the_one_with_the_step_written_by_hand": 1,
        "test_program_without_a_method_trains_and_few_lines_change": 2,
        "test_svi_with_a_method_in_a_bare_optimizer_names_what_is_missing": 0,
    },
    "composition/test_composition.py": {
        "test_all_behind_it_do_with_the_descent_as_by_hand": 1,
        "test_conditionally_transform_skips_the_method_and_its_state": 1,
        "test_step_sizes_are_those_of_the_descent_and_the_given_loss": 1,
        "test_wrappers_around_it_hand_the_descent_to_the_base_optimizer": 1,
    },
    "composition/test_hyperparameters.py": {
        "test_injected_schedule_is_read_at_every_step": 1,
        "test_schedule_is_read_at_every_step": 1,
    },
    "composition/test_line_searches.py": {
        "test_backtracking_behind_it_goes_down_on_the_clean_loss": 1,
        "test_lbfgs_behind_it_takes_its_curvature_from_the_descents": 1,
    },
    "composition/test_masks_in_ascents.py": {
        "test_what_a_mask_leaves_out_is_not_perturbed_under_any_nesting": 10
    },
    "composition/test_optax_bar.py": {"test_explicit_sharding_types_of_the_state_are_stable": 2},
    "composition/test_parts_of_the_parameters.py": {
        "test_ascent_of_a_part_perturbs_it_alone_and_descends_on_all": 2,
        "test_inside_masked_and_partition_the_method_sees_a_part": 1,
        "test_what_moves_before_its_first_gradient_moves_the_visible_part_alone": 2,
    },
    "composition/test_schedules.py": {
        "test_family_has_its_formula_and_its_mean": 3,
        "test_family_is_a_probability_of_rst": 3,
    },
    "composition/test_wrappers.py": {
        "test_a_slice_that_is_not_finite_leaves_nothing_in_the_state": 2,
        "test_an_infinite_loss_of_a_draw_with_a_finite_gradient_gives_no_nan": 1,
        "test_one_draw_needs_no_loop": 0,
        "test_slices_of_a_method_that_draws_starts_anew_in_its_own_slice": 0,
        "test_weights_of_low_precision_are_summed_without_overflow": 1,
        "test_weights_of_single_precision_where_double_is_enabled": 1,
    },
    "devices/test_collectives.py": {
        "test_draws_send_few_numbers": 2,
        "test_losses_and_norms_travel_with_the_gradients": 3,
        "test_weights_and_a_row_for_padding_travel_once": 3,
    },
    "devices/test_devices.py": {
        "test_microbatches_of_single_examples_are_split_over_the_devices_as_far_as_they_can_be": 1,
        "test_norms_of_single_examples_stay_where_the_examples_are": 0,
        "test_sharded_batch_gives_the_trajectory_of_one_device": 1,
        "test_slices_are_split_over_devices_however_many_there_are": 2,
        "test_state_keeps_the_sharding_of_sharded_parameters": 1,
    },
    "devices/test_per_device.py": {
        "test_gradients_are_all_reduced_once": 1,
        "test_other_axes_of_the_mesh_are_left_alone": 0,
        "test_per_device_composes_with_slices_and_draws": 0,
        "test_per_device_is_per_microbatch_with_a_slice_a_device": 1,
    },
    "devices/test_placed_per_device.py": {
        "test_a_loss_that_places_its_arrays_has_the_numbers_of_each_device": 2,
        "test_methods_that_choose_examples_are_given_such_losses_too": 1,
    },
    "devices/test_pmap.py": {
        "test_the_page_on_linen_is_refused_under_pmap": 0,
        "test_whatever_keeps_the_replicas_alike_is_accepted": 1,
        "test_with_the_mean_in_its_gradient_function_it_is_the_step_of_the_whole_batch": 1,
    },
    "devices/test_processes.py": {"test_two_processes_decide_alike_and_give_the_numbers_of_one": 0},
    "devices/test_shard_map.py": {
        "test_a_fisher_mask_is_that_of_the_first_examples_of_all_devices": 1,
        "test_each_example_has_its_own_loss_gradient_and_norm": 2,
        "test_every_device_may_train_parameters_of_its_own": 0,
        "test_examples_are_chosen_among_the_rows_of_each_device": 1,
        "test_losses_are_averaged_over_devices_with_the_same_parameters": 1,
        "test_mean_loss_and_gradient_function_of_the_global_batch": 1,
    },
    "devices/test_sharded_parameters.py": {"test_split_parameters_stay_split_and_norms_are_global": 1},
    "documentation/test_derived.py": {
        "test_the_command_exits_with_1_and_names_a_part_that_is_out_of_date": 0
    },
    "experiments/test_adapted.py": {
        "test_a_run_trains_its_adapters_and_the_head_alone": 1,
        "test_an_interrupted_run_ends_with_the_numbers_of_a_whole_one": 1,
        "test_runs_side_by_side_have_the_numbers_of_runs_alone": 0,
        "test_the_network_with_adapters_is_the_merged_one": 1,
        "test_without_noise_or_radius_they_are_the_base": 0,
    },
    "experiments/test_changed_data.py": {"test_a_grid_goes_on_with_the_same_labels_alone": 1},
    "experiments/test_checkpoints.py": {
        "test_damage_to_any_file_of_a_checkpoint_costs_at_most_that_checkpoint": 0
    },
    "experiments/test_compile_only.py": {
        "test_a_stream_has_a_program_of_one_step": 0,
        "test_methods_with_another_first_epoch_have_two_programs_of_steps": 0,
        "test_needs_are_printed_and_nothing_is_trained_or_written": 0,
        "test_the_program_is_the_one_that_the_run_executes": 0,
    },
    "experiments/test_compositions.py": {"test_the_compositions_of_the_experiments_are_their_parts": 0},
    "experiments/test_data.py": {
        "test_augmentation_keeps_shapes_and_follows_the_key": 1,
        "test_ausam_hears_which_examples_it_sees": 0,
        "test_tfds_set_by_name": 0,
    },
    "experiments/test_evidence.py": {"test_a_task_is_searched_tested_timed_and_goes_on_where_it_was": 0},
    "experiments/test_forgetting.py": {
        "test_finished_runs_are_lines_and_are_not_trained_again": 0,
        "test_rounding_is_to_fifteen_levels_of_each_output": 0,
    },
    "experiments/test_grid.py": {
        "test_failed_runs_are_told_at_the_end_and_the_others_go_on": 0,
        "test_programs_are_shared_by_seeds_and_radii_and_finished_runs_are_left_alone": 0,
    },
    "experiments/test_methods.py": {"test_every_method_fits_into_the_training_loop": 4},
    "experiments/test_models.py": {"test_the_parameters_are_as_many_as_published": 3},
    "experiments/test_optimizers.py": {
        "test_decay_in_the_loss_is_perturbed_and_decay_after_the_method_is_not": 0
    },
    "experiments/test_pose.py": {"test_image_and_keypoints_move_together": 0},
    "experiments/test_quantized.py": {
        "test_training_with_sam_and_few_bits": 0,
        "test_values_and_gradients_are_the_papers": 1,
    },
    "experiments/test_recipes.py": {"test_words_after_the_recipe_override_it": 0},
    "experiments/test_records.py": {
        "test_events_hold_the_numbers_of_the_metrics_once_after_a_resumption_too": 0
    },
    "experiments/test_rules.py": {
        "test_a_radius_follows_the_measured_rise": 1,
        "test_a_radius_is_its_formula": 2,
    },
    "experiments/test_series.py": {
        "test_a_character_is_predicted_from_those_before_it": 0,
        "test_a_forecast_that_diverged_is_said_to_be_not_finite": 0,
        "test_cifar10n_is_in_the_order_of_tfds": 0,
        "test_forecasts_and_texts_are_judged_by_their_loss": 0,
        "test_labels_come_from_a_file": 0,
    },
    "experiments/test_side_by_side.py": {
        "test_a_grid_trains_side_by_side_and_goes_on": 0,
        "test_each_run_has_the_numbers_of_a_run_by_itself": 0,
        "test_each_run_records_its_own_sharpness": 0,
    },
    "experiments/test_step_functions.py": {
        "test_saf_has_no_term_for_examples_that_the_epoch_did_not_see": 0,
        "test_without_weight_or_before_the_start_saf_and_mesa_are_sgd": 0,
    },
    "experiments/test_stream.py": {"test_imagenet_is_streamed_and_trained_on": 0},
    "experiments/test_text.py": {"test_padding_has_no_influence": 0},
    "experiments/test_train.py": {"test_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one": 0},
    "experiments/test_width.py": {"test_each_layers_part_of_the_gradient_is_seen_at_both_looks": 0},
    "frameworks/test_computing_nodes.py": {
        "test_a_node_that_computes_an_array_is_no_variable": 1,
        "test_its_norms_and_its_curvature_are_those_of_its_leaves": 1,
    },
    "frameworks/test_flax.py": {
        "test_a_part_of_the_parameters_is_trained_and_the_rest_stays_bit_for_bit": 1,
        "test_masks_of_the_passes_are_the_same_unless_keys_are_fresh": 1,
        "test_parameters_split_by_hand_suit_every_method": 1,
        "test_statistics_and_counts_of_the_live_model_are_those_of_one_forward_pass": 1,
    },
    "frameworks/test_flax_arguments.py": {
        "test_masks_of_the_passes_are_the_same_unless_keys_are_fresh_and_those_of_the_steps_differ": 1
    },
    "frameworks/test_flax_writes.py": {
        "test_no_two_steps_share_the_noise": 2,
        "test_parameters_that_the_loss_writes_are_those_of_the_step_by_hand": 2,
    },
    "frameworks/test_linen.py": {
        "test_batch_statistics_are_those_of_a_forward_pass_at_the_start_of_the_method": 1,
        "test_linen_step_is_the_one_written_by_hand": 1,
    },
    "frameworks/test_recipes.py": {"test_haiku": 0, "test_jraph": 0},
    "fuzzing/test_fuzz.py": {"test_any_call_gives_the_documented_result_or_the_documented_error": 0},
    "fuzzing/test_fuzz_convolutions.py": {"test_random_convolutions_have_the_same_gradients": 0},
    "fuzzing/test_fuzz_implicit.py": {"test_random_layers_have_the_gradients_and_norms_of_jax": 0},
    "fuzzing/test_fuzz_places.py": {
        "test_masks_nested_among_other_ascents_leave_out_what_they_leave_out": 0,
        "test_nodes_that_compute_arrays_change_no_result": 0,
        "test_under_pmap_replicas_stay_alike_or_the_step_is_refused": 0,
    },
    "guarantees/test_calls.py": {
        "test_an_oracle_by_hand_gives_the_same_step_and_one_of_another_method_is_refused": 1,
        "test_first_gradient_is_where_and_on_what_the_method_wants_it": 2,
        "test_gradient_evaluations_are_those_documented": 2,
        "test_host_decisions_follow_the_program": 1,
        "test_padding_is_harmless": 1,
    },
    "guarantees/test_checkpoints.py": {
        "test_flax_and_orbax_restore_and_the_run_goes_on_bit_for_bit": 2,
        "test_states_of_earlier_releases_load_and_go_on": 1,
    },
    "guarantees/test_family.py": {
        "test_a_complex_leaf_moves_as_its_real_and_imaginary_part": 3,
        "test_a_gradient_of_zero_gives_no_perturbation_and_nothing_is_nan": 10,
        "test_every_draw_follows_the_momentum_of_the_base_optimizer": 0,
        "test_in_loops_and_under_vmap_the_same_happens": 2,
        "test_structures_shapes_and_dtypes_are_kept_and_odd_leaves_pass_through": 5,
        "test_the_number_of_gradients_that_is_told_is_taken": 3,
        "test_the_program_and_the_host_take_the_same_decisions": 1,
    },
    "guarantees/test_family_cost.py": {
        "test_flops_are_those_of_the_documented_gradients": 2,
        "test_methods_of_one_gradient_cost_what_sgd_costs": 2,
    },
    "guarantees/test_family_places.py": {
        "test_a_sharded_batch_gives_the_trajectory_of_one_device": 2,
        "test_injected_numbers_are_those_that_are_given": 3,
        "test_one_perturbation_per_device_is_one_per_slice": 1,
        "test_one_slice_and_accumulated_parts_are_the_method_itself": 2,
    },
    "guarantees/test_geometries.py": {
        "test_a_zero_direction_stays_zero_and_has_a_derivative_in_a_p_ball": 3,
        "test_all_layers_are_felt_alike_in_narrow_and_in_wide_networks": 0,
        "test_complex_entries_keep_their_phase_in_a_p_ball": 9,
        "test_layers_in_half_precision_and_under_vmap_are_those_of_each_alone": 1,
        "test_the_steepest_perturbation_of_a_p_ball_is_on_it": 9,
        "test_zero_layers_stay_zero_and_have_a_derivative": 1,
    },
    "guarantees/test_held_losses.py": {
        "test_a_scalar_loss_that_reads_nothing_of_its_batch_is_refused_where_parts_are_asked_for": 1,
        "test_eager_steps_compile_nothing_after_the_first_and_decide_as_compiled_ones": 1,
        "test_further_arguments_reach_every_device": 0,
        "test_further_arguments_reach_every_pass": 2,
        "test_on_explicit_axes_a_loss_that_closes_over_arrays_is_told_where_they_go": 1,
        "test_what_is_assigned_between_the_two_calls_does_not_reach_the_second": 2,
    },
    "guarantees/test_identity.py": {"test_unequal_methods_are_an_error_that_names_the_first_difference": 4},
    "guarantees/test_odd_leaves.py": {
        "test_a_batch_of_any_width_may_have_padding": 2,
        "test_measurements_leave_them_alone": 0,
        "test_they_pass_through_every_method": 0,
        "test_they_pass_through_every_wrapper": 0,
    },
    "guarantees/test_pieces.py": {
        "test_counts_are_exact_over_slices_of_any_weight_and_any_number_of_draws": 0,
        "test_gradients_inside_a_loss_are_its_own_and_counted_nowhere": 2,
        "test_pieces_with_trees_in_their_state_stand_inside_a_mask": 2,
        "test_the_count_of_slices_is_their_plain_mean_whatever_they_weigh": 0,
        "test_what_a_users_piece_takes_is_counted_inside_every_wrapper": 3,
    },
    "guarantees/test_pieces_refused.py": {
        "test_a_start_that_compares_losses_refuses_a_selection_of_other_ones": 0
    },
    "guarantees/test_radius_pieces.py": {
        "test_polyaks_step_is_as_long_for_a_loss_of_any_scale": 1,
        "test_polyaks_step_sees_weights_and_a_loss_scale_as_its_gradient_does": 0,
        "test_slices_take_each_a_polyak_step_of_its_own_and_a_whole_step_in_parts_one": 0,
        "test_under_vmap_runs_take_each_a_polyak_step_of_its_own": 0,
    },
    "guarantees/test_short_step.py": {
        "test_it_is_the_two_calls_bit_for_bit": 3,
        "test_it_is_the_two_calls_wherever_the_method_stands": 1,
        "test_with_injected_hyperparameters_it_is_the_method_with_these_numbers": 1,
    },
    "guarantees/test_state.py": {
        "test_in_every_mode_of_jax_dtypes_are_kept_and_nothing_is_nan": 2,
        "test_method_survives_copy_pickle_replace_and_tree_map": 2,
        "test_scan_cond_and_one_trace_for_two_calls": 1,
        "test_vmap_over_seeds_and_trajectories": 1,
    },
    "guarantees/test_training_step.py": {
        "test_the_derivative_by_an_example_s_weight_is_right_where_the_weight_is_not_zero": 0,
        "test_whole_batch_leaves_nothing_to_choose": 1,
    },
    "methods/test_against_references.py": {"test_vsam_follows_its_reference": 3},
    "methods/test_ausam_against_references.py": {"test_ausam_follows_its_reference": 2},
    "methods/test_eigen_and_focal_sam.py": {
        "test_hessian_products_know_padding_and_slices": 0,
        "test_it_is_the_top_eigenvector_of_the_dense_hessian": 0,
        "test_the_vector_of_a_complex_leaf_is_that_of_its_real_form": 0,
        "test_the_vector_stays_a_unit_vector": 1,
        "test_the_vector_stays_a_unit_vector_over_devices": 0,
    },
    "methods/test_limits.py": {"test_tsam_without_noise_is_sam": 1},
    "methods/test_per_microbatch.py": {
        "test_gate_decides_once_for_all_slices": 1,
        "test_per_microbatch_is_a_loop_over_slices": 1,
    },
    "migration/test_from_optax.py": {
        "test_mean_over_devices_in_a_pmap_and_under_jit": 0,
        "test_new_call_trains_as_the_old_one": 2,
    },
    "migration/test_from_pytorch.py": {"test_new_call_trains_as_the_recorded_one": 3},
    "per_example/test_ghost_norms.py": {
        "test_losses_of_one_parameter_have_the_norms_of_vmap": 12,
        "test_networks_have_the_norms_of_vmap": 1,
    },
    "per_example/test_ghost_norms_of_odd_inputs.py": {
        "test_a_table_that_is_read_by_bytes": 0,
        "test_derivatives_of_the_norms_are_finite_where_a_layer_has_no_gradient": 0,
        "test_integers_complex_numbers_and_any_units_beside_a_matrix": 6,
    },
    "per_example/test_gradients_that_cancel.py": {
        "test_a_few_rows_that_cancel_keep_their_digits": 1,
        "test_many_places_of_a_kernel_that_cancel": 1,
        "test_many_rows_that_cancel_are_never_nan_and_no_smaller_than_rounding": 1,
        "test_slopes_of_norms_of_rows_that_cancel": 0,
    },
    "per_example/test_per_example.py": {"test_they_are_those_of_batches_of_one": 1},
    "sharpness/test_curvature.py": {
        "test_eigenvalues_of_a_network_are_those_of_its_hessian": 1,
        "test_every_copy_of_a_known_eigenvalue_is_found": 1,
        "test_gauss_newton_eigenvalues_are_those_of_its_matrix": 0,
        "test_in_double_precision_eigenvalues_are_exact_to_it": 0,
        "test_products_are_those_of_the_written_out_matrices": 0,
        "test_the_spectral_density": 0,
        "test_what_an_inner_jit_a_derivative_rule_or_a_key_reads_may_change": 0,
    },
    "sharpness/test_rises.py": {
        "test_gradient_noise_is_the_spread_of_the_examples_gradients": 0,
        "test_landscapes_are_the_losses_on_their_grid": 0,
        "test_m_sharpness_is_the_mean_over_parts_of_so_many_examples": 0,
        "test_the_adaptive_ball_does_not_see_a_rescaling": 0,
        "test_the_psf_norm_is_the_mean_of_the_batches_weighted_by_their_examples": 0,
    },
    "sharpness/test_sharded.py": {"test_measurements_keep_what_is_split_and_give_the_same_numbers": 0},
    "traps/test_traps_of_state.py": {"test_passes_over_a_copied_nnx_model_leave_the_live_one_alone": 1},
}
