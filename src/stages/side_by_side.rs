//! The images of a batch side by side, each computed on its own.

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use tch::{Device, Tensor};

use crate::engine::Result;

/// Computes the images of a batch, each on its own.
///
/// On the CPU each image is computed by one thread, and as many images at a time as libtorch has threads. Most operators on
/// a single image are too small to be shared among threads, which would wait for each other. The result of an image
/// is therefore the same bit for bit, however many threads there are. On other devices one image follows another.
pub(super) struct SideBySide {
    threads: Option<ThreadPool>,
}

impl SideBySide {
    /// Starts the threads for images on this device.
    pub(super) fn new(device: Device) -> Result<Self> {
        let threads = if device == Device::Cpu { Some(single_threads()?) } else { None };
        Ok(Self { threads })
    }

    /// Returns what `of` computes by `network` of each image of `images` [B, …]: of the network, the image's place in the
    /// batch and the image [1, …], in the order of the batch. The error is that of the first image that has one.
    ///
    /// # Safety
    /// While `of` runs, nothing may write to a tensor of `network`, and what else `network` changes behind a shared
    /// reference must be made for several threads, as `OnceLock` is. The compiler cannot check this, because `Tensor` is
    /// not `Sync`.
    pub(super) unsafe fn each<N: ?Sized, T: Send>(
        &self,
        network: &N,
        images: &Tensor,
        of: impl Fn(&N, usize, &Tensor) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let images: Vec<Tensor> = (0..images.size()[0]).map(|row| images.narrow(0, row, 1)).collect();
        let Some(threads) = &self.threads else {
            return images.iter().enumerate().map(|(row, image)| of(network, row, image)).collect();
        };
        let network = Shared(network);
        let compute = |(row, image): (usize, Tensor)| of(network.get(), row, &image);
        let found: Vec<Result<T>> =
            threads.install(|| images.into_par_iter().enumerate().with_max_len(1).map(compute).collect());
        found.into_iter().collect()
    }
}

/// Starts as many threads as libtorch has, each of which libtorch computes on alone.
fn single_threads() -> Result<ThreadPool> {
    let count = tch::get_num_threads();
    let alone = |_| {
        // The first question sets the thread's number to that of the process, and must come before the own one is set.
        _ = tch::get_num_threads();
        tch::set_num_threads(1);
    };
    let threads = ThreadPoolBuilder::new().num_threads(count as usize).start_handler(alone).build();
    let threads = threads.map_err(std::io::Error::other)?;
    // The number counts for the calling thread and for threads that start later. The latter is set back as soon as all
    // of these have theirs.
    threads.broadcast(|_| ());
    tch::set_num_threads(count);
    Ok(threads)
}

/// A network that several threads read.
struct Shared<'a, N: ?Sized>(&'a N);

// SAFETY: tensors are read by several threads at once without harm: libtorch counts references atomically, and its
// operators that only read take no locks because they need none. That nothing is written is up to the callers of
// `SideBySide::each`.
unsafe impl<N: ?Sized> Sync for Shared<'_, N> {}

impl<'a, N: ?Sized> Shared<'a, N> {
    /// Returns the network. A method is called, because a closure would capture the field without its wrapper.
    fn get(&self) -> &'a N {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::engine::Error;

    /// Sums of products that are large enough to be shared among threads, where there are several.
    fn products(matrix: &Tensor, image: &Tensor) -> Vec<f32> {
        Vec::try_from(image.squeeze_dim(0).matmul(matrix).sum_dim_intlist([0].as_slice(), false, Kind::Float)).unwrap()
    }

    #[test]
    fn images_are_those_that_one_thread_computes_in_their_order() {
        let before = tch::get_num_threads();
        tch::manual_seed(5);
        let matrix = Tensor::randn([256, 64], tch::kind::FLOAT_CPU);
        let images = Tensor::randn([7, 300, 256], tch::kind::FLOAT_CPU);
        let compute = |matrix: &Tensor, row: usize, image: &Tensor| {
            assert_eq!(tch::get_num_threads(), 1);
            Ok((row, products(matrix, image)))
        };
        let side_by_side = SideBySide::new(Device::Cpu).unwrap();
        // SAFETY: nothing writes to the matrix.
        let found = unsafe { side_by_side.each(&matrix, &images, compute) }.unwrap();
        assert_eq!(tch::get_num_threads(), before);
        let alone = std::thread::spawn(move || {
            _ = tch::get_num_threads();
            tch::set_num_threads(1);
            let of = |row: usize| (row, products(&matrix, &images.narrow(0, row as i64, 1)));
            let alone: Vec<(usize, Vec<f32>)> = (0..7).map(of).collect();
            tch::set_num_threads(before);
            alone
        });
        assert_eq!(found, alone.join().unwrap());
    }

    #[test]
    fn error_is_that_of_the_first_image_that_has_one() {
        let side_by_side = SideBySide::new(Device::Cpu).unwrap();
        let fail =
            |(): &(), row: usize, _: &Tensor| if row < 2 { Ok(row) } else { Err(Error::Input(format!("row {row}"))) };
        let images = Tensor::zeros([5, 1], tch::kind::FLOAT_CPU);
        // SAFETY: there is no network.
        let found = unsafe { side_by_side.each(&(), &images, fail) };
        assert_eq!(found.unwrap_err().to_string(), Error::Input("row 2".into()).to_string());
    }
}
