"""Constants, and the words and units used everywhere in sfhzoo.

| name                            | meaning                                                       |
|---------------------------------|---------------------------------------------------------------|
| `sfr`, `logzsol`                | histories on the 64 bins, Msun/yr and log10(Z/Z_sun);         |
|                                 | bin 0 is the Big Bang, bin 63 is today                        |
| `cosmic_time`                   | Gyr since the Big Bang                                        |
| `lookback`                      | Gyr before the observation                                    |
| `mass_formed`, `mass_surviving` | Msun                                                          |
| `a_v`                           | V-band attenuation, mag                                       |
| `wave_obs`, `wave_rest`         | vacuum Å (`loglam`, log10 Å, only where SDSS files are read)  |
| `flux`, `ivar`, `mask`          | erg/s/cm²/Å; `ivar` = 0 means no data; `mask` True = use      |
| `sigma_v`, `lsf_sigma`          | km/s                                                          |
| `redshift`                      | redshift; `x` is the network's variable                       |
| `sigma_t`, `x_t`, `x_hat`       | diffusion only; a data error is never called sigma            |
| `nfe`                           | network evaluations, counted                                  |
| axes                            | `sample, bin, age, metallicity, wave`, in this order          |
"""

from __future__ import annotations

SPEED_OF_LIGHT = 299792.458
"""km/s"""

SOLAR_LUMINOSITY = 3.828e33
"""erg/s, IAU 2015 Resolution B3. BC03 and BAGPIPES use 3.826e33."""

CM_PER_MPC = 3.0856775814913673e24
"""cm"""

Z_SUN = 0.0142
"""Solar metal mass fraction of the histories and grids (Asplund et al. 2009, bulk)."""

YR_PER_GYR = 1e9

FWHM_PER_SIGMA = 2.3548200450309493
"""2 sqrt(2 ln 2)"""

LN10 = 2.302585092994046

AB_ZERO = 3.631e-20
"""erg/s/cm²/Hz, the flux density of AB magnitude 0: one maggie"""

ANGSTROM_PER_KM = 1e13
