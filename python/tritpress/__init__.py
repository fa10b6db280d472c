"""tritpress: press trained models into ternary weights, measure what it cost, run them on a plain CPU."""
