// Draws one picture with a bundle alone, in C++ with OpenVINO: draw BUNDLE OUT.pgm [NOISE]
// For networks that predict noise on a linear schedule, such as builtin:fashion-mnist-unet. NOISE is a file of float32, else random.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <openvino/openvino.hpp>
#include <random>
#include <regex>

static std::vector<double> numbers(const std::string& json, const std::string& name) {  // "name": 1.5 or "name": [1.5, 2.5]
    std::smatch found;
    if (!std::regex_search(json, found, std::regex('"' + name + "\": (\\[[^\\]]*\\]|[-+.0-9e]+)")))
        throw std::runtime_error("the manifest has no " + name);
    std::string text = std::regex_replace(found[1].str(), std::regex("[^-+.0-9e]+"), " ");
    std::istringstream stream(text);
    return {std::istream_iterator<double>(stream), {}};
}

int main(int argc, char** argv) {
    if (argc < 3) return std::cerr << "draw BUNDLE OUT.pgm [NOISE]\n", 2;
    const std::string bundle = argv[1];
    std::ifstream file(bundle + "/manifest.json");
    const std::string manifest{std::istreambuf_iterator<char>(file), {}};
    std::vector<double> timesteps = numbers(manifest, "timesteps"), alphas;
    const double from = numbers(manifest, "beta_start")[0], to = numbers(manifest, "beta_end")[0];
    const int trained = int(numbers(manifest, "num_train_timesteps")[0]);
    for (int i = 0; i < trained; ++i)
        alphas.push_back((i ? alphas.back() : 1.0) * (1.0 - (from + (to - from) * i / (trained - 1))));

    ov::Core core;
    auto network = core.compile_model(bundle + "/model.onnx", "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = network.create_infer_request();
    ov::PartialShape sizes = network.input("sample").get_partial_shape();
    sizes[0] = 1;
    ov::Tensor sample(ov::element::f32, sizes.to_shape()), timestep(ov::element::f32, {1});
    float* x = sample.data<float>();
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::generate_n(x, sample.get_size(), [&] { return normal(random); });
    if (argc > 3) std::ifstream(argv[3], std::ios::binary).read(reinterpret_cast<char*>(x), sample.get_byte_size());

    for (size_t step = timesteps.size(); step-- > 0;) {  // DDIM, deterministic
        const double a = alphas[size_t(timesteps[step])], next = step ? alphas[size_t(timesteps[step - 1])] : 1.0;
        timestep.data<float>()[0] = float(timesteps[step]);
        request.set_tensor("sample", sample);
        request.set_tensor("timestep", timestep);
        request.infer();
        const float* noise = request.get_output_tensor().data<float>();
        for (size_t i = 0; i < sample.get_size(); ++i) {
            const double picture = std::clamp((x[i] - std::sqrt(1 - a) * noise[i]) / std::sqrt(a), -1.0, 1.0);
            x[i] = float(std::sqrt(next) * picture + std::sqrt(1 - next) * noise[i]);
        }
    }
    const auto shape = sample.get_shape();
    std::ofstream picture(argv[2], std::ios::binary);
    picture << "P5\n" << shape[3] << " " << shape[2] << "\n255\n";
    for (size_t i = 0; i < shape[2] * shape[3]; ++i)
        picture.put(char(std::lround(std::clamp((x[i] + 1) / 2, 0.f, 1.f) * 255)));
}
